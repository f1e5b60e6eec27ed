# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user model on the migrated table: a UUID and the columns of the strategy."""

from __future__ import annotations

import functools
import uuid

from django.contrib.auth import get_backends
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import connections, models


class User(AbstractBaseUser):
    """A row of auth_service.users; whether it is a superuser is a role in the user service."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    username = models.CharField(max_length=150, unique=True)
    email = models.EmailField(unique=True)
    password = models.CharField(max_length=128, db_column="password_hash")
    is_active = models.BooleanField(default=True)

    objects = BaseUserManager()
    USERNAME_FIELD = "username"
    EMAIL_FIELD = "email"

    class Meta:
        """The migration made the table."""

        db_table = "users"
        managed = False

    @functools.cached_property
    def roles(self) -> set[str]:
        """Return the user's roles."""
        with connections["user_service"].cursor() as cursor:
            cursor.execute("SELECT role_type FROM roles WHERE user_id = %s AND is_active", [self.id])
            return {role for (role,) in cursor.fetchall()}

    @property
    def is_superuser(self) -> bool:
        """Tell whether the user may do everything."""
        return "superuser" in self.roles

    def has_perm(self, permission: str) -> bool:
        """Tell whether any backend grants the permission."""
        return any(backend.has_perm(self, permission) for backend in get_backends())

    def get_all_permissions(self) -> set[str]:
        """Return what the backends grant by name."""
        return set().union(*(backend.get_all_permissions(self) for backend in get_backends()))
