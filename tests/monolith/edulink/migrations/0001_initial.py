# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edulink's tables."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Institution",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=200)),
                ("country", models.CharField(max_length=100, null=True)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "db_table": "institutions",
            },
        ),
        migrations.CreateModel(
            name="Profile",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("user", models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL)),
                ("first_name", models.CharField(max_length=100, null=True)),
                ("last_name", models.CharField(max_length=100, null=True)),
                ("phone", models.CharField(max_length=20, null=True)),
                ("date_of_birth", models.DateField(null=True)),
                ("gender", models.CharField(max_length=10, null=True)),
                ("address", models.TextField(null=True)),
                ("city", models.CharField(max_length=100, null=True)),
                ("country", models.CharField(max_length=100, null=True)),
                ("postal_code", models.CharField(max_length=20, null=True)),
                ("bio", models.TextField(null=True)),
                ("avatar_url", models.CharField(max_length=500, null=True)),
                ("linkedin_url", models.CharField(max_length=500, null=True)),
                ("github_url", models.CharField(max_length=500, null=True)),
                ("website_url", models.CharField(max_length=500, null=True)),
                ("profile_type", models.CharField(max_length=20)),
                ("is_public", models.BooleanField()),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
            ],
            options={
                "db_table": "users_profile",
                "permissions": (
                    ("moderate_profile", "Can hide a profile that breaks the rules, until its owner has mended it"),
                    (
                        "export_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                        "Can export üüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüü",
                    ),
                ),
            },
        ),
        migrations.CreateModel(
            name="Student",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("user", models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL)),
                ("student_id", models.CharField(max_length=50, null=True, unique=True)),
                ("institution", models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, to="edulink.institution")),
                ("program", models.CharField(max_length=200, null=True)),
                ("year_of_study", models.IntegerField(null=True)),
                ("gpa", models.DecimalField(decimal_places=2, max_digits=3, null=True)),
                ("graduation_date", models.DateField(null=True)),
                ("skills", models.JSONField(null=True)),
                ("interests", models.JSONField(null=True)),
                ("resume_url", models.CharField(max_length=500, null=True)),
                ("portfolio_url", models.CharField(max_length=500, null=True)),
                ("is_seeking_internship", models.BooleanField()),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
            ],
            options={
                "db_table": "students",
            },
        ),
        migrations.CreateModel(
            name="Company",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("user", models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL)),
                ("company_name", models.CharField(max_length=200)),
                ("industry", models.CharField(max_length=100, null=True)),
                ("company_size", models.CharField(max_length=50, null=True)),
                ("description", models.TextField(null=True)),
                ("website_url", models.CharField(max_length=500, null=True)),
                ("logo_url", models.CharField(max_length=500, null=True)),
                ("headquarters", models.CharField(max_length=200, null=True)),
                ("founded_year", models.IntegerField(null=True)),
                ("is_verified", models.BooleanField()),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
            ],
            options={
                "db_table": "companies",
            },
        ),
        migrations.CreateModel(
            name="Role",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("user", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL)),
                ("role_type", models.CharField(max_length=50)),
                ("institution", models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, to="edulink.institution")),
                ("company", models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, to="edulink.company")),
                ("permissions", models.JSONField(null=True)),
                ("is_active", models.BooleanField()),
                (
                    "granted_by",
                    models.ForeignKey(
                        db_column="granted_by",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="granted_roles",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("granted_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
            ],
            options={
                "db_table": "users_role",
            },
        ),
    ]
