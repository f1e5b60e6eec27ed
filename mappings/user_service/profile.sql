SELECT
    p.id, p.user_id,
    CASE WHEN btrim(coalesce(p.first_name, '')) = '' AND btrim(u.first_name) <> '' THEN u.first_name ELSE p.first_name END AS first_name,
    CASE WHEN btrim(coalesce(p.last_name, '')) = '' AND btrim(u.last_name) <> '' THEN u.last_name ELSE p.last_name END AS last_name,
    p.phone, p.date_of_birth, p.gender, p.address, p.city, p.country, p.postal_code, p.bio,
    p.avatar_url, p.linkedin_url, p.github_url, p.website_url,
    p.profile_type, p.is_public, p.created_at, p.updated_at
FROM users_profile AS p
LEFT JOIN auth_user AS u ON u.id = p.user_id
