CREATE TABLE users (id uuid PRIMARY KEY, email text NOT NULL UNIQUE, manager_id uuid REFERENCES users, password_hash text NOT NULL);
CREATE TABLE profiles (user_id uuid PRIMARY KEY REFERENCES users, bio text NOT NULL UNIQUE);
CREATE TABLE groups (id uuid PRIMARY KEY, name text NOT NULL);
CREATE TABLE memberships (user_id uuid REFERENCES users, group_id uuid REFERENCES groups, PRIMARY KEY (user_id, group_id));
