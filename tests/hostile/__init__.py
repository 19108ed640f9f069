"""What hostile code tries in the sandbox, a test a case; numbers are those of the list of cases."""
