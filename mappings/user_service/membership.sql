SELECT m.user_id, m.group_id, g.name, held.permissions
FROM auth_user_groups AS m
LEFT JOIN auth_group AS g ON g.id = m.group_id
LEFT JOIN (
    SELECT gp.group_id, jsonb_agg(t.app_label || '.' || p.codename ORDER BY t.app_label COLLATE "C", p.codename COLLATE "C") AS permissions
    FROM auth_group_permissions AS gp
    JOIN auth_permission AS p ON p.id = gp.permission_id
    JOIN django_content_type AS t ON t.id = p.content_type_id
    GROUP BY gp.group_id
) AS held ON held.group_id = m.group_id
