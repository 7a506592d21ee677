"""How several tuning vectors become one."""
