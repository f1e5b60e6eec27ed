SELECT u.id AS user_id, u.date_joined
FROM auth_user AS u
WHERE u.is_superuser
