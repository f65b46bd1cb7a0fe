"""What stands between this machine and a port: looked at step by step, and one piece of advice.

`examine` looks, and says what it finds as it goes; `advice` weighs it, in words first; `report`
puts it into lines and JSON. Nothing is ever signed because a reply named it: an address that the
server saw is shown, and a person decides.
"""
