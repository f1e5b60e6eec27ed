-- Made after the load, without CONCURRENTLY where nobody else uses the table.

CREATE INDEX CONCURRENTLY idx_profiles_user_id ON user_service.profiles (user_id);
CREATE INDEX CONCURRENTLY idx_roles_user_id ON user_service.roles (user_id);
CREATE INDEX CONCURRENTLY idx_roles_active ON user_service.roles (is_active) WHERE is_active = true;
