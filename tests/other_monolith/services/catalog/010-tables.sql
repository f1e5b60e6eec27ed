CREATE TABLE items (
  id uuid PRIMARY KEY, parent_id uuid REFERENCES items DEFERRABLE INITIALLY DEFERRED, price numeric(30,10), bits bit(5), size int4range, doc xml, dur time,
  "Größe" double precision, old_key uuid NOT NULL UNIQUE, created timestamp NOT NULL DEFAULT now(), CHECK (price > 0));
CREATE INDEX ON items (price) WHERE parent_id IS NOT NULL;
CREATE INDEX ON items ((price * 2), lower(old_key::text));
CREATE TABLE item_tags (id uuid PRIMARY KEY, item_id uuid NOT NULL REFERENCES items ON DELETE CASCADE, tag text NOT NULL, UNIQUE (item_id, tag) DEFERRABLE);
CREATE TABLE "Band" (id uuid PRIMARY KEY, rate numeric(20,4) NOT NULL UNIQUE, label text);
CREATE TABLE band_uses (id uuid PRIMARY KEY, band_id uuid REFERENCES "Band", old_id int);
CREATE TABLE assets (id uuid PRIMARY KEY, old_id int, name text);
CREATE TABLE nothings (id uuid PRIMARY KEY, v text);
CREATE TABLE zeros (id uuid PRIMARY KEY, name text NOT NULL);
