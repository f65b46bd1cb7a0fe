"""The policy: who may reach what, from where and for how long. spa-policy(5).

`load` reads it, `model` is what it says, `decide` is what follows from it for one request.
"""
