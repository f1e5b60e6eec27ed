SELECT own.user_id, own.permission_id
FROM auth_user_user_permissions AS own
UNION
SELECT membership.user_id, granted.permission_id
FROM auth_user_groups AS membership
JOIN auth_group_permissions AS granted ON granted.group_id = membership.group_id
