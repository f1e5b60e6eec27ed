CREATE TABLE users (id uuid PRIMARY KEY, name text NOT NULL, friends uuid[] NOT NULL, seen uuid[]);
CREATE TABLE teams (id uuid PRIMARY KEY, old_id bigint NOT NULL);
CREATE TABLE labels (id uuid PRIMARY KEY, code text NOT NULL);
CREATE TABLE notes (id uuid PRIMARY KEY, owner_id uuid REFERENCES users, settings jsonb, labels uuid[]);
