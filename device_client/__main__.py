"""`python -m device_client`, the same as the command `device-client`; leaves everything to `cli`."""

from device_client.cli import app

if __name__ == "__main__":
    app()
