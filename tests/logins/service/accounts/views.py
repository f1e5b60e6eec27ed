# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a browser can do at the service."""

from __future__ import annotations

import django
from django.contrib.auth import authenticate, login, logout
from django.http import HttpRequest, JsonResponse
from django.urls import path


def whoami(request: HttpRequest) -> JsonResponse:
    """Return whom the session belongs to, what is in its cart and what the user may do."""
    user = request.user
    known = user.is_authenticated
    return JsonResponse(
        {
            "id": str(user.pk) if known else None,
            "username": user.get_username(),
            "cart": request.session.get("cart"),
            "permissions": sorted(user.get_all_permissions()) if known else [],
            "moderates": known and user.has_perm("edulink.moderate_profile"),
            "superuser": known and user.is_superuser,
        }
    )


def enter(request: HttpRequest) -> JsonResponse:
    """Log in by name and password."""
    user = authenticate(request, username=request.POST["username"], password=request.POST["password"])
    if user is not None:
        login(request, user)
    return JsonResponse({"username": user and user.get_username()}, status=200 if user else 403)


def leave(request: HttpRequest) -> JsonResponse:
    """Log out."""
    logout(request)
    return JsonResponse({})


def add(request: HttpRequest) -> JsonResponse:
    """Put something into the cart."""
    request.session["cart"] = {**(request.session.get("cart") or {}), "added": True}
    return JsonResponse({"cart": request.session["cart"]})


def version(request: HttpRequest) -> JsonResponse:
    """Return the version of Django."""
    return JsonResponse({"django": django.get_version()})


urlpatterns = [path("whoami/", whoami), path("login/", enter), path("logout/", leave), path("cart/", add), path("version/", version)]
