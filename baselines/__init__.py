"""Methods that FIA is compared with, one a file; nothing but the method's idea."""
