"""`spa-server policy suggest`: what the record of the last days says about a policy.

usage, peaks          what was used: the record summed up by SQLite
attribution           which rule a use came by
findings              what the policy in force allows beyond that; editing takes it out
least, writing        the least policy that would have allowed it, as a file
"""
