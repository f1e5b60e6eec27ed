# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a browser can see of the monolith: who it is and what its cart holds."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path


def whoami(request: HttpRequest) -> JsonResponse:
    """Return the user that the session belongs to, and the cart in it."""
    return JsonResponse({"username": request.user.get_username(), "cart": request.session.get("cart")})


urlpatterns = [path("whoami/", whoami)]
