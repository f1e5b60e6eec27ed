# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the services' schema SQL into a contract of tables, constraints and indexes.

What is not understood is refused; what is left out on purpose (dumped.py) is said in a line, where it is read and where the rest is applied.
"""
