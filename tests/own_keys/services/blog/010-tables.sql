CREATE TABLE authors (user_id uuid PRIMARY KEY, bio text NOT NULL);
CREATE TABLE posts (id uuid PRIMARY KEY, author_id uuid NOT NULL REFERENCES authors (user_id), editor_id uuid, lead_id uuid, title text NOT NULL);
CREATE TABLE post_tags (post_id uuid REFERENCES posts, tag text, weight numeric(6,2), at timestamp, PRIMARY KEY (post_id, tag, weight));
