CREATE TABLE auth_user (id int PRIMARY KEY, public_id uuid NOT NULL UNIQUE, email text NOT NULL, manager_id int, password text NOT NULL);
-- Version 7, so that all begin alike; every seventh of version 4; none of version 8.
INSERT INTO auth_user SELECT g, CASE WHEN g % 7 = 0 THEN overlay(md5(g::text) placing '4' from 13 for 1)::uuid ELSE ('01912345-6789-7' || lpad(to_hex(g), 3, '0') || '-8000-000000000000')::uuid END,
  'u' || g || '@example.org', nullif(g / 10, 0), 'hash ' || g FROM generate_series(1, 900) g;
CREATE TABLE profile (user_id int PRIMARY KEY REFERENCES auth_user, bio text NOT NULL);
INSERT INTO profile SELECT g, 'bio ' || g FROM generate_series(1, 900, 2) g;
CREATE TABLE auth_group (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO auth_group SELECT g, 'group ' || g FROM generate_series(1, 9) g;
CREATE TABLE auth_user_groups (id int PRIMARY KEY, user_id int NOT NULL REFERENCES auth_user, group_id int NOT NULL REFERENCES auth_group, UNIQUE (user_id, group_id));
INSERT INTO auth_user_groups SELECT row_number() OVER (), u, g FROM generate_series(1, 900) u, generate_series(1, 9) g WHERE u % 9 <= g % 4;
CREATE TABLE post (id bigint PRIMARY KEY, author_id int NOT NULL REFERENCES auth_user, editor_id int, lead_id int, title text NOT NULL);
INSERT INTO post SELECT g, g % 450 * 2 + 1, nullif(g % 5, 0), CASE WHEN g % 100 = 0 THEN 5000 + g ELSE g % 900 + 1 END, 'post ' || g FROM generate_series(1, 1200) g;
CREATE TABLE post_tag (post_id bigint NOT NULL REFERENCES post, tag text NOT NULL, weight numeric(6,2) NOT NULL, at timestamptz, PRIMARY KEY (post_id, tag, weight));
INSERT INTO post_tag SELECT g, t, 1.50, '2024-03-31 01:59:59.999999+01' FROM generate_series(1, 300) g, unnest(ARRAY['a', 'A', '', 'ß "x"', E'back\\slash\ttab']) t;
ANALYZE;
