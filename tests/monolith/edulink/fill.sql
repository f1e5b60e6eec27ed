-- Copyright (c) 2026, the Edulink migration project
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Fill the monolith with :bulk users beside the known accounts. One statement makes all rows of one table; every value is
-- computed from the user's ordinal n and the seed, so that the same options give the same rows. :bulk, :seed and
-- :group_permissions are integers, put in by the command `fill`; each section below is one step of its progress.

-- step: functions
-- A number in [0, m), the same for the same n and s.
CREATE FUNCTION pg_temp.r(n bigint, s int, m int) RETURNS int LANGUAGE sql IMMUTABLE AS
$fn$SELECT (((hashint8extended(n, s + :seed * 1000) >> 1) & 2147483647) % m)::int$fn$;

-- Keys with gaps, as deleted rows and rolled back transactions leave them; user ids jump by a million in the middle.
CREATE FUNCTION pg_temp.uid(n bigint) RETURNS int LANGUAGE sql IMMUTABLE AS
$fn$SELECT (100 + n + n / 10 * 3 + n / 1000 * 50 + CASE WHEN n > :bulk / 2 THEN 1000000 ELSE 0 END)::int$fn$;

-- Every twelfth user is a company; its key can be told from n.
CREATE FUNCTION pg_temp.is_company(n bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS $fn$SELECT n % 12 = 5$fn$;
CREATE FUNCTION pg_temp.cid(n bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $fn$SELECT n / 12 * 2 + 1001$fn$;
CREATE FUNCTION pg_temp.is_student(n bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS
$fn$SELECT n % 12 <> 5 AND pg_temp.r(n, 1, 100) < 65$fn$;
CREATE FUNCTION pg_temp.has_profile(n bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS
$fn$SELECT n <= 40 OR pg_temp.r(n, 2, 10) > 0$fn$;

CREATE FUNCTION pg_temp.joined(n bigint) RETURNS timestamptz LANGUAGE sql STABLE AS
$fn$SELECT timestamptz '2012-03-01 00:00:00+00' + pg_temp.r(n, 3, 400000000) * interval '1 second' + pg_temp.r(n, 4, 1000000) * interval '1 microsecond'$fn$;

-- A text that careless tools break, or NULL for most n.
CREATE FUNCTION pg_temp.odd(n bigint, s int) RETURNS text LANGUAGE sql IMMUTABLE AS
$fn$SELECT CASE pg_temp.r(n, s, 200)
    WHEN 0 THEN '' WHEN 1 THEN ' ' WHEN 2 THEN 'O''Brien "Bob" `x`' WHEN 3 THEN E'two\nlines' WHEN 4 THEN E'win\r\ndows'
    WHEN 5 THEN E'back\\slash\\' WHEN 6 THEN E'\\N' WHEN 7 THEN E'\\.' WHEN 8 THEN E'tab\tbed' WHEN 9 THEN 'NULL'
    WHEN 10 THEN 'naïve façade' WHEN 11 THEN '北京大学 東京' WHEN 12 THEN 'محمد علي' WHEN 13 THEN 'Ольга Жукова'
    WHEN 14 THEN '👩🏽‍🎓🇪🇺 emoji' WHEN 15 THEN U&'e\0301 a\0308' WHEN 16 THEN U&'zero\200Bwidth\FEFF' WHEN 17 THEN E'\x01\x1f\x7f'
    WHEN 18 THEN '; DROP --' WHEN 19 THEN '{{ lookup }}{% if %}' WHEN 20 THEN '%s %(a)s $1 :b' WHEN 21 THEN '<b>&amp;</b>'
    WHEN 22 THEN U&'rtl\202Eabc' WHEN 23 THEN '=1+1,"a";b|c' WHEN 24 THEN U&'\+01F9FF\+010FFF' WHEN 25 THEN '$$ $x$ '
  END$fn$;

-- A json value of every kind; NULL for one in twenty.
CREATE FUNCTION pg_temp.js(n bigint, s int) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
$fn$SELECT CASE pg_temp.r(n, s, 20)
    WHEN 0 THEN NULL
    WHEN 1 THEN (ARRAY['null', 'true', 'false', '0', '-0.0', '1.10', '1e30', '12345678901234567890.123456789', '""',
                       '"\u00e9\ud83d\ude00\n\"\\\\"', '"null"', '[]', '{}', '[[], {}, [null]]', '[1, "1", 1.0, true, null]',
                       '{"": 0, "a\"b": {"c": [{"d": null}]}, "ключ": "значение", "z": "\u0001"}',
                       '{"level": {"level": {"level": {"level": {"level": ["deep"]}}}}}']::jsonb[])[1 + pg_temp.r(n, s + 1, 17)]
    WHEN 2 THEN jsonb_build_object('languages', jsonb_build_array('Deutsch', '日本語'), 'since', 1990 + pg_temp.r(n, s + 2, 35), 'level', 0.5)
    ELSE jsonb_build_array(
      (ARRAY['Python', 'C++', 'SQL', 'Rust', 'Go', 'Statistik', 'Écriture', 'Robotics', 'R', 'CAD'])[1 + pg_temp.r(n, s + 3, 10)],
      (ARRAY['Music', 'Schach', 'Fútbol', 'AI', 'Biology', 'Law', 'Film', 'Energy'])[1 + pg_temp.r(n, s + 4, 8)])
  END$fn$;

CREATE FUNCTION pg_temp.first_name(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$fn$SELECT (ARRAY['Anna', 'José', 'Łukasz', 'Mei', 'Søren', 'Aïcha', 'Olga', 'Bob', 'Ngọc', 'Zoë', 'Jean-Luc', 'Siobhán', 'Ömer', 'Hana',
  'Иван', '美咲', 'Chloé', 'Pedro', 'Sunil', 'Ama'])[1 + pg_temp.r(n, 5, 20)]$fn$;
CREATE FUNCTION pg_temp.last_name(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$fn$SELECT (ARRAY['Müller', 'García', 'O''Connor', 'Nguyễn', 'Smith', 'Šimić', 'Ivanova', '田中', 'van der Berg', 'D''Angelo', 'Ferreira',
  'Okafor', 'Kaya', 'Ångström', 'Lopez-Ruiz', 'Dvořák', 'Kim', 'Silva', 'Rao', 'Mensah'])[1 + pg_temp.r(n, 6, 20)]$fn$;

-- What looks like a hash of every hasher Django has had; nobody knows a password for it.
CREATE FUNCTION pg_temp.hash(k int, d text, b text) RETURNS text LANGUAGE sql IMMUTABLE AS
$fn$SELECT CASE
    WHEN k < 70 THEN 'pbkdf2_sha256$' || (ARRAY['260000', '600000', '1000000'])[1 + k % 3] || '$' || left(d, 22) || '$' || b
    WHEN k < 78 THEN 'argon2$argon2id$v=19$m=102400,t=2,p=8$' || left(d, 22) || '$' || left(b, 43)
    WHEN k < 84 THEN 'bcrypt_sha256$$2b$12$' || left(d, 53)
    WHEN k < 86 THEN 'bcrypt$$2b$12$' || left(d, 53)
    WHEN k < 91 THEN 'scrypt$16384$' || left(d, 22) || '$8$5$' || left(b, 43) || left(b, 43) || '=='
    WHEN k < 94 THEN 'pbkdf2_sha1$180000$' || left(d, 12) || '$' || left(b, 27) || '='
    WHEN k < 96 THEN 'md5$' || left(d, 12) || '$' || left(d, 32)
    WHEN k < 99 THEN '!' || left(d, 40)
    ELSE '' END$fn$;

-- step: auth_user
INSERT INTO auth_user (id, password, last_login, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined)
SELECT pg_temp.uid(n),
  CASE n WHEN 1 THEN left(repeat('legacy$' || md5(n::text), 9), 128) ELSE pg_temp.hash(k, d, b) END,
  CASE WHEN pg_temp.r(n, 10, 5) > 0 THEN pg_temp.joined(n) + pg_temp.r(n, 11, 20000000) * interval '1 second' END,
  pg_temp.r(n, 12, 5000) = 0,
  CASE n WHEN 1 THEN rpad('long', 150, 'ü😀') WHEN 2 THEN 'Alice' WHEN 3 THEN 'alice' WHEN 4 THEN 'o''hara "q" \'
    ELSE (ARRAY['anna', 'jose', 'mei', 'søren', 'olga', 'bob', 'zoë', 'ivan'])[1 + pg_temp.r(n, 13, 8)] || (ARRAY['.', '_', '-', '+', '@'])[1 + pg_temp.r(n, 14, 5)] || n END,
  CASE n WHEN 1 THEN repeat('Ñ', 150) WHEN 6 THEN repeat('Ñ', 150) ELSE
    CASE WHEN pg_temp.r(n, 15, 4) = 0 THEN '' ELSE coalesce(pg_temp.odd(n, 16), pg_temp.first_name(n)) END END,
  CASE n WHEN 1 THEN repeat('漢', 150) ELSE
    CASE WHEN pg_temp.r(n, 15, 4) = 0 OR pg_temp.r(n, 17, 30) = 0 THEN '' ELSE coalesce(pg_temp.odd(n, 18), pg_temp.last_name(n)) END END,
  CASE n WHEN 1 THEN rpad('a', 242, 'b') || '@example.org' WHEN 2 THEN 'Case@example.org' WHEN 3 THEN 'case@example.org' WHEN 4 THEN '"o''hara"@exämple.org'
    ELSE 'u' || n || (ARRAY['@example.com', '@school.example', '@mail.example.net', '+tag@example.org'])[1 + pg_temp.r(n, 19, 4)] END,
  pg_temp.r(n, 20, 100) = 0,
  pg_temp.r(n, 21, 25) > 0,
  CASE n WHEN 7 THEN timestamptz '0001-01-01 00:00:00+00' WHEN 8 THEN timestamptz '9999-12-31 23:59:59.999999+00'
    WHEN 9 THEN timestamptz '2024-02-29 23:59:59.999999+00' WHEN 10 THEN timestamptz '1970-01-01 00:00:00+00' ELSE pg_temp.joined(n) END
FROM generate_series(1, :bulk) AS n
CROSS JOIN LATERAL (  -- OFFSET 0: computed once, not once for every mention
  SELECT pg_temp.r(n, 7, 100), encode(sha256(int8send(n * 31::bigint + :seed)), 'hex'), encode(sha256(int8send(n * 37::bigint + :seed)), 'base64') OFFSET 0
) AS x (k, d, b);

-- step: institutions
INSERT INTO institutions (id, name, country, created_at)
SELECT i * 3 + i / 10,
  CASE i WHEN 1 THEN repeat('École 🎓', 25) ELSE coalesce(nullif(pg_temp.odd(i, 30), ''), (ARRAY['University of ', 'Hochschule ', 'Escuela de ', 'Université de ', '大学 '])[1 + i % 5] || i) END,
  CASE i % 7 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE (ARRAY['Deutschland', 'España', 'Kenya', '日本', 'Côte d''Ivoire'])[1 + i % 5] END,
  pg_temp.joined(i + 77)
FROM generate_series(1, 200) AS i;

-- step: users_profile
INSERT INTO users_profile (id, user_id, first_name, last_name, phone, date_of_birth, gender, address, city, country, postal_code, bio,
  avatar_url, linkedin_url, github_url, website_url, profile_type, is_public, created_at, updated_at)
SELECT n + n / 13 * 2, pg_temp.uid(n),
  CASE WHEN n = 1 THEN repeat('é', 100) WHEN n = 6 THEN repeat('é', 100) WHEN pg_temp.r(n, 31, 12) = 0 THEN NULL WHEN pg_temp.r(n, 31, 12) = 1 THEN '' ELSE coalesce(pg_temp.odd(n, 16), pg_temp.first_name(n)) END,
  CASE WHEN n = 1 THEN repeat('😀', 100) WHEN pg_temp.r(n, 32, 12) = 0 THEN NULL WHEN pg_temp.r(n, 32, 12) = 1 THEN '' ELSE coalesce(pg_temp.odd(n, 18), pg_temp.last_name(n)) END,
  CASE WHEN n = 1 THEN repeat('9', 20) WHEN pg_temp.r(n, 33, 3) = 0 THEN NULL WHEN pg_temp.r(n, 33, 9) = 1 THEN '' ELSE '+49 30 ' || pg_temp.r(n, 34, 10000000) END,
  CASE n WHEN 1 THEN date '4713-01-01 BC' WHEN 2 THEN date '9999-12-31' WHEN 3 THEN date '0001-01-01' WHEN 4 THEN date '1900-02-28' WHEN 5 THEN date '2000-02-29'
    ELSE CASE WHEN pg_temp.r(n, 35, 4) > 0 THEN date '1950-01-01' + pg_temp.r(n, 36, 21000) END END,
  CASE n WHEN 1 THEN repeat('ø', 10) ELSE (ARRAY['female', 'male', 'divers', '', NULL])[1 + pg_temp.r(n, 37, 5)] END,
  CASE WHEN pg_temp.r(n, 38, 3) = 0 THEN NULL ELSE coalesce(pg_temp.odd(n, 39), 'Straße ' || pg_temp.r(n, 40, 300) || E'\n2nd floor') END,
  CASE n WHEN 1 THEN repeat('Å', 100) ELSE (ARRAY['Berlin', 'São Paulo', 'Zürich', '東京', 'L''Aquila', 'Nairobi', '', NULL])[1 + pg_temp.r(n, 41, 8)] END,
  CASE n WHEN 1 THEN repeat('ß', 100) ELSE (ARRAY['Germany', 'Brasil', 'Schweiz', '日本', 'Italia', 'Kenya', NULL])[1 + pg_temp.r(n, 42, 7)] END,
  CASE n WHEN 1 THEN repeat('0', 20) ELSE CASE WHEN pg_temp.r(n, 43, 5) > 0 THEN lpad(pg_temp.r(n, 44, 99999)::text, 5, '0') END END,
  CASE WHEN n = 1 THEN repeat(E'A life\tin "many" pages; \\n is not a newline.\n', 4000) WHEN pg_temp.r(n, 45, 4) = 0 THEN NULL
    ELSE coalesce(pg_temp.odd(n, 46), repeat((ARRAY['I like learning. ', 'Ich mag Züge 🚆. ', 'Busco prácticas. ', E'Line\n'])[1 + pg_temp.r(n, 47, 4)], 1 + pg_temp.r(n, 48, 12))) END,
  CASE n WHEN 1 THEN rpad('https://cdn.example/', 500, 'a/') ELSE CASE WHEN pg_temp.r(n, 49, 3) = 0 THEN 'https://cdn.example/a/' || md5(n::text) || '.png' END END,
  CASE n WHEN 1 THEN rpad('https://', 500, 'l') ELSE CASE WHEN pg_temp.r(n, 50, 4) = 0 THEN 'https://linkedin.example/in/u' || n END END,
  CASE n WHEN 1 THEN rpad('https://', 500, 'ğ') ELSE CASE WHEN pg_temp.r(n, 51, 4) = 0 THEN 'https://github.example/u' || n END END,
  CASE n WHEN 1 THEN rpad('https://', 500, '🌍') ELSE CASE pg_temp.r(n, 52, 6) WHEN 0 THEN 'https://exämple.org/?a=1&b=%20#' || n WHEN 1 THEN '' END END,
  CASE WHEN n = 2 THEN repeat('t', 20) WHEN pg_temp.is_company(n) THEN 'company' WHEN pg_temp.is_student(n) THEN 'student' ELSE (ARRAY['institution', 'mentor', 'individual'])[1 + pg_temp.r(n, 53, 3)] END,
  pg_temp.r(n, 54, 3) > 0,
  pg_temp.joined(n), pg_temp.joined(n) + pg_temp.r(n, 55, 50000000) * interval '1 second'
FROM generate_series(1, :bulk) AS n WHERE pg_temp.has_profile(n);

-- step: students
INSERT INTO students (id, user_id, student_id, institution_id, program, year_of_study, gpa, graduation_date, skills, interests, resume_url,
  portfolio_url, is_seeking_internship, created_at, updated_at)
SELECT n + n / 9, pg_temp.uid(n),
  CASE WHEN n = 1 THEN repeat('№', 50) WHEN n = 2 THEN '' WHEN pg_temp.r(n, 60, 20) = 0 THEN NULL ELSE 'S-' || (2012 + pg_temp.r(n, 61, 14)) || '/' || n END,
  CASE WHEN pg_temp.r(n, 62, 10) > 0 THEN i * 3 + i / 10 END,
  CASE WHEN n = 1 THEN repeat('π', 200) WHEN pg_temp.r(n, 63, 15) = 0 THEN NULL ELSE coalesce(pg_temp.odd(n, 64), (ARRAY['Informatik', 'Law & Economics', 'Médecine', '数学', 'B.Sc. "Honours"'])[1 + pg_temp.r(n, 65, 5)]) END,
  CASE n WHEN 1 THEN 2147483647 WHEN 2 THEN -2147483648 WHEN 3 THEN 0 ELSE CASE WHEN pg_temp.r(n, 66, 12) > 0 THEN 1 + pg_temp.r(n, 67, 6) END END,
  CASE n WHEN 1 THEN 9.99 WHEN 2 THEN -9.99 WHEN 3 THEN 0.00 ELSE CASE WHEN pg_temp.r(n, 68, 8) > 0 THEN pg_temp.r(n, 69, 401) / 100.0 END END,
  CASE n WHEN 1 THEN date '9999-12-31' WHEN 2 THEN date '0001-01-01' ELSE CASE WHEN pg_temp.r(n, 70, 4) > 0 THEN date '2015-01-01' + pg_temp.r(n, 71, 6000) END END,
  pg_temp.js(n, 72), pg_temp.js(n, 80),
  CASE n WHEN 1 THEN rpad('https://', 500, 'r') ELSE CASE WHEN pg_temp.r(n, 86, 3) = 0 THEN 'https://files.example/cv/' || n || '.pdf' END END,
  CASE n WHEN 1 THEN rpad('https://', 500, 'p') ELSE CASE pg_temp.r(n, 87, 6) WHEN 0 THEN 'https://portfolio.example/' || n WHEN 1 THEN '' END END,
  pg_temp.r(n, 88, 2) = 0,
  pg_temp.joined(n), pg_temp.joined(n) + pg_temp.r(n, 89, 50000000) * interval '1 second'
FROM generate_series(1, :bulk) AS n CROSS JOIN LATERAL (SELECT 1 + pg_temp.r(n, 59, 200)) AS x (i)
WHERE n <= 3 OR pg_temp.is_student(n);

-- step: companies
INSERT INTO companies (id, user_id, company_name, industry, company_size, description, website_url, logo_url, headquarters, founded_year,
  is_verified, created_at, updated_at)
SELECT pg_temp.cid(n), pg_temp.uid(n),
  CASE n WHEN 5 THEN repeat('&Co', 66) || '€€' ELSE coalesce(pg_temp.odd(n, 90), (ARRAY['Müller & Söhne', 'Acme', '株式会社', 'Nordic AB', 'L''Atelier'])[1 + pg_temp.r(n, 91, 5)] || ' ' || n) END,
  CASE n WHEN 5 THEN repeat('i', 100) ELSE (ARRAY['IT', 'Énergie', 'Bau', 'Health', '', NULL])[1 + pg_temp.r(n, 92, 6)] END,
  CASE n WHEN 5 THEN repeat('9', 50) ELSE (ARRAY['1-10', '11-50', '51-200', '> 200', NULL])[1 + pg_temp.r(n, 93, 5)] END,
  CASE WHEN pg_temp.r(n, 94, 5) = 0 THEN NULL ELSE coalesce(pg_temp.odd(n, 95), repeat('We build things. ', 1 + pg_temp.r(n, 96, 20))) END,
  CASE n WHEN 5 THEN rpad('https://', 500, 'w') ELSE CASE WHEN pg_temp.r(n, 97, 3) > 0 THEN 'https://c' || n || '.example' END END,
  CASE n WHEN 5 THEN rpad('https://', 500, 'g') ELSE CASE WHEN pg_temp.r(n, 98, 3) = 0 THEN 'https://c' || n || '.example/logo.svg' END END,
  CASE n WHEN 5 THEN repeat('Ż', 200) ELSE (ARRAY['Berlin', 'Zürich', '東京', NULL])[1 + pg_temp.r(n, 99, 4)] END,
  CASE n WHEN 5 THEN 2147483647 WHEN 17 THEN -2147483648 ELSE CASE WHEN pg_temp.r(n, 100, 6) > 0 THEN 1800 + pg_temp.r(n, 101, 225) END END,
  pg_temp.r(n, 102, 3) = 0,
  pg_temp.joined(n), pg_temp.joined(n) + pg_temp.r(n, 103, 50000000) * interval '1 second'
FROM generate_series(5, :bulk, 12) AS n;

-- step: users_role
-- k = 0 is what nearly everybody has; k = 1 is a second role, for some.
INSERT INTO users_role (id, user_id, role_type, institution_id, company_id, permissions, is_active, granted_by, granted_at, expires_at, created_at, updated_at)
SELECT n * 2 + k + n / 50, pg_temp.uid(n),
  CASE WHEN n = 1 THEN repeat('r', 50) WHEN k = 1 THEN (ARRAY['company_member', 'institution_admin', 'mentor', 'staff'])[1 + pg_temp.r(n, 110, 4)]
    WHEN pg_temp.is_company(n) THEN 'company_admin' WHEN pg_temp.is_student(n) THEN 'student' ELSE 'member' END,
  CASE WHEN NOT pg_temp.is_company(n) AND pg_temp.r(n, 111, 4) > 0 THEN i * 3 + i / 10 END,
  CASE WHEN pg_temp.is_company(n) THEN pg_temp.cid(n)
    WHEN k = 1 AND :bulk >= 12 THEN pg_temp.cid(5 + 12 * pg_temp.r(n, 112, (:bulk - 5) / 12 + 1)) END,
  pg_temp.js(n, 113 + k),
  pg_temp.r(n, 121 + k, 12) > 0,
  CASE WHEN pg_temp.r(n, 123, 3) = 0 THEN pg_temp.uid(1 + pg_temp.r(n, 124, :bulk)) WHEN pg_temp.r(n, 123, 3) = 1 THEN 1 END,
  pg_temp.joined(n),
  CASE n WHEN 1 THEN timestamptz '9999-12-31 23:59:59.999999+00' ELSE CASE WHEN pg_temp.r(n, 125, 5) = 0 THEN pg_temp.joined(n) + interval '4 years' END END,
  pg_temp.joined(n), pg_temp.joined(n) + pg_temp.r(n, 126, 50000000) * interval '1 second'
FROM generate_series(1, :bulk) AS n CROSS JOIN (VALUES (0), (1)) AS roles (k) CROSS JOIN LATERAL (SELECT 1 + pg_temp.r(n, 127, 200)) AS x (i)
WHERE CASE k WHEN 0 THEN pg_temp.r(n, 128, 20) < 17 ELSE pg_temp.r(n, 129, 20) = 0 END;

-- step: auth_permission
-- An app that was uninstalled leaves its content types and permissions behind; two models share a codename.
INSERT INTO django_content_type (app_label, model)
VALUES ('legacy', 'report'), ('legacy', 'profile'), (repeat('a', 40), repeat('m', 59));
INSERT INTO auth_permission (name, content_type_id, codename)
SELECT 'Can ' || action || ' legacy ' || model, id, action || '_' || left(model, 20)
FROM django_content_type CROSS JOIN (VALUES ('add'), ('change'), ('delete'), ('view')) AS actions (action)
WHERE app_label IN ('legacy', repeat('a', 40));

-- step: auth_group
-- empty-hall has permissions and no member, alumni has members and no permission, ghosts has neither; staff is also a kind of role.
INSERT INTO auth_group (name)
VALUES ('teachers'), ('alumni'), ('empty-hall'), ('ghosts'), ('mentors'), ('staff'), ('Éditeurs "principaux"'), ('o''hara\group'),
  (repeat('ğ', 50)), ('company admins'), ('reviewers 🔍'), ('librarians');
INSERT INTO auth_group_permissions (group_id, permission_id)
SELECT g.id, p.id
FROM auth_group AS g CROSS JOIN (SELECT id, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS total FROM auth_permission) AS p
WHERE g.name NOT IN ('alumni', 'ghosts') AND (p.place - 1 + p.total - CASE g.name WHEN 'teachers' THEN 4 ELSE g.id % p.total END) % p.total < :group_permissions;

-- step: auth_user_groups
INSERT INTO auth_user_groups (user_id, group_id)
SELECT pg_temp.uid(n), g.id
FROM generate_series(1, :bulk) AS n
JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place, count(*) OVER () AS total FROM auth_group WHERE name NOT IN ('empty-hall', 'ghosts')) AS g
  ON n = 1 OR g.place = pg_temp.r(n, 131, g.total::int) OR pg_temp.r(n, 132, 10) = 0 AND g.place = pg_temp.r(n, 133, g.total::int)
WHERE n = 1 OR pg_temp.r(n, 130, 10) = 0;

-- step: auth_user_user_permissions
-- Some of these the user's groups give as well.
INSERT INTO auth_user_user_permissions (user_id, permission_id)
SELECT pg_temp.uid(n), p.id
FROM generate_series(1, :bulk) AS n
JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place, count(*) OVER () AS total FROM auth_permission) AS p
  ON n = 1 OR p.place = pg_temp.r(n, 134, p.total::int) OR p.place = pg_temp.r(n, 135, p.total::int)
WHERE n = 1 OR pg_temp.r(n, 136, 20) = 0;
