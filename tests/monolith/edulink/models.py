# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edulink's tables."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Institution(models.Model):
    """A school or a university."""

    name = models.CharField(max_length=200)
    country = models.CharField(max_length=100, null=True)
    created_at = models.DateTimeField()

    class Meta:
        db_table = "institutions"


class Profile(models.Model):
    """What a user shows of themselves."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE)
    first_name = models.CharField(max_length=100, null=True)
    last_name = models.CharField(max_length=100, null=True)
    phone = models.CharField(max_length=20, null=True)
    date_of_birth = models.DateField(null=True)
    gender = models.CharField(max_length=10, null=True)
    address = models.TextField(null=True)
    city = models.CharField(max_length=100, null=True)
    country = models.CharField(max_length=100, null=True)
    postal_code = models.CharField(max_length=20, null=True)
    bio = models.TextField(null=True)
    avatar_url = models.CharField(max_length=500, null=True)
    linkedin_url = models.CharField(max_length=500, null=True)
    github_url = models.CharField(max_length=500, null=True)
    website_url = models.CharField(max_length=500, null=True)
    profile_type = models.CharField(max_length=20)
    is_public = models.BooleanField()
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        db_table = "users_profile"
        permissions = (
            ("moderate_profile", "Can hide a profile that breaks the rules, until its owner has mended it"),
            ("export_" + "x" * 93, "Can export " + "ü" * 89),  # both as long as the services take them: 100
        )


class Student(models.Model):
    """A user who studies."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE)
    student_id = models.CharField(max_length=50, null=True, unique=True)
    institution = models.ForeignKey(Institution, models.SET_NULL, null=True)
    program = models.CharField(max_length=200, null=True)
    year_of_study = models.IntegerField(null=True)
    gpa = models.DecimalField(max_digits=3, decimal_places=2, null=True)
    graduation_date = models.DateField(null=True)
    skills = models.JSONField(null=True)
    interests = models.JSONField(null=True)
    resume_url = models.CharField(max_length=500, null=True)
    portfolio_url = models.CharField(max_length=500, null=True)
    is_seeking_internship = models.BooleanField()
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        db_table = "students"


class Company(models.Model):
    """A user who offers internships for a company."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE)
    company_name = models.CharField(max_length=200)
    industry = models.CharField(max_length=100, null=True)
    company_size = models.CharField(max_length=50, null=True)
    description = models.TextField(null=True)
    website_url = models.CharField(max_length=500, null=True)
    logo_url = models.CharField(max_length=500, null=True)
    headquarters = models.CharField(max_length=200, null=True)
    founded_year = models.IntegerField(null=True)
    is_verified = models.BooleanField()
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        db_table = "companies"


class Role(models.Model):
    """What a user may do, for whom, and since when."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    role_type = models.CharField(max_length=50)
    institution = models.ForeignKey(Institution, models.SET_NULL, null=True)
    company = models.ForeignKey(Company, models.SET_NULL, null=True)
    permissions = models.JSONField(null=True)
    is_active = models.BooleanField()
    granted_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, db_column="granted_by", related_name="granted_roles")
    granted_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        db_table = "users_role"
