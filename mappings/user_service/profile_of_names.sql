SELECT
    u.id AS user_id, u.first_name, u.last_name, u.date_joined,
    CASE
        WHEN EXISTS (SELECT FROM students AS s WHERE s.user_id = u.id) THEN 'student'
        WHEN EXISTS (SELECT FROM companies AS c WHERE c.user_id = u.id) THEN 'company'
        ELSE 'individual'
    END AS profile_type
FROM auth_user AS u
LEFT JOIN users_profile AS p ON p.user_id = u.id
WHERE p.user_id IS NULL AND (btrim(u.first_name) <> '' OR btrim(u.last_name) <> '')
