"""What the same process could do if it did one thing only.

python -m benchmarks.limits SECONDS    prints how many signatures a second it verifies
"""

import secrets
import sys
import time

from keys.identity import generate
from spa_protocol import sshsig


def verifications_per_s(seconds: float) -> float:
    """Ed25519 signatures of knocks, as the doorkeeper verifies them, and nothing else."""
    key = generate()
    messages = [secrets.token_bytes(176) for _ in range(100)]
    signed = [(message, key.sign(message)) for message in messages]
    count, began_s = 0, time.perf_counter()
    while (lasted_s := time.perf_counter() - began_s) < seconds:
        for message, signature in signed:
            if not sshsig.verify(message, signature, key.public.key_type, key.public.signing):
                raise AssertionError("a signature does not hold")
        count += len(signed)
    return count / lasted_s


if __name__ == "__main__":
    print(verifications_per_s(float(sys.argv[1])))
