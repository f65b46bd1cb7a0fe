"""fwknop's access.conf, read and translated into a policy and into who is to be invited."""
