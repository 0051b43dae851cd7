"""`make ui`: the Dagster UI on the state the demo left, until Ctrl-C."""

import argparse
from pathlib import Path

from curvas_assets.local.deployment import LocalDeployment, free_port, stop_cleanly_when_terminated
from curvas_assets.orchestration.environment import GPU_SLOTS, environment, gpu_slots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".state"))
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    stop_cleanly_when_terminated()
    deployment = LocalDeployment(arguments.state, study="phantom")
    port = free_port(arguments.port)
    if environment().get(GPU_SLOTS):
        deployment.set_gpu_slots(gpu_slots())
    with deployment.s3:
        print(f"Dagster: http://127.0.0.1:{port}   (Ctrl-C ends it; the state stays in {arguments.state})", flush=True)
        with deployment.dagster(deployment.environment(), port) as process:
            try:
                process.wait()
            except KeyboardInterrupt:
                print("stopping", flush=True)


if __name__ == "__main__":
    main()
