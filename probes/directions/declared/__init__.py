"""Attribution methods over directions and features, as suites and command lines know them."""
