# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords as Django checks them, permissions from the migrated tables."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.db import connection


class ServiceBackend(ModelBackend):
    """Django's own backend with the permissions of the service."""

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        """Return app_label.codename of each permission of an active user."""
        if not user_obj.is_active:
            return set()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT split_part(p.content_type, '.', 1) || '.' || p.codename"
                " FROM user_permissions AS u JOIN permissions AS p ON p.id = u.permission_id WHERE u.user_id = %s",
                [user_obj.pk],
            )
            return {name for (name,) in cursor.fetchall()}

    def has_perm(self, user_obj: Any, perm: str, obj: Any = None) -> bool:
        """Tell whether a user may do something."""
        return user_obj.is_active and (user_obj.is_superuser or perm in self.get_all_permissions(user_obj))
