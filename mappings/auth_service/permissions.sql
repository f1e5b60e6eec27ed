SELECT p.id, p.name, p.codename, p.content_type_id, t.app_label || '.' || t.model AS content_type
FROM auth_permission AS p
LEFT JOIN django_content_type AS t ON t.id = p.content_type_id
