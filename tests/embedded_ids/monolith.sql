CREATE TABLE auth_user (id int PRIMARY KEY, name text NOT NULL, friend_ids int[] NOT NULL, seen text[]);
INSERT INTO auth_user SELECT g, 'user ' || g, CASE WHEN g % 4 = 0 THEN '{}' ELSE ARRAY[g, NULL, 901 - g, g, 1] END,
  CASE WHEN g % 3 = 0 THEN NULL ELSE ARRAY[(g / 2 + 1)::text] END FROM generate_series(1, 900) g;
CREATE TABLE team (id bigint PRIMARY KEY, public_id uuid NOT NULL UNIQUE);
INSERT INTO team SELECT g, md5(g::text)::uuid FROM generate_series(1, 30) g;
CREATE TABLE label (code text PRIMARY KEY);
INSERT INTO label SELECT 'l ' || g FROM generate_series(1, 9) g;
CREATE TABLE note (id int PRIMARY KEY, owner varchar(20), settings jsonb, labels text[]);
INSERT INTO note SELECT g, nullif((g % 7)::text, '0'), CASE g % 6
  WHEN 0 THEN jsonb_build_object('owner', g, 'teams', jsonb_build_array(g % 30 + 1, NULL, (g % 30 + 1)::text), 'n', 1.10, 'deep', jsonb_build_object('a b', jsonb_build_array(jsonb_build_object('by', g::text, 'x', NULL), '{}'::jsonb)))
  WHEN 1 THEN '{"owner": null, "teams": 3, "deep": []}' WHEN 2 THEN '[]' WHEN 3 THEN '{"owner": "7", "teams": [], "other": {"owner": 5000}}' WHEN 4 THEN 'null' END,
  CASE WHEN g % 2 = 0 THEN ARRAY['l ' || g % 9 + 1, NULL] END FROM generate_series(1, 900) g;
ANALYZE;
