# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a service's own SQL files into a contract, with PostgreSQL's own parser; only a controller needs it.

What is not understood is refused, never skipped: a contract that left something out would prove too little.
"""
