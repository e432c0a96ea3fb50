# One release, not a moving name: the image changes only when this line does.
FROM python:3.13.14-slim-trixie AS base

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /src
# The dependencies first: a change of our own code does not install them again.
COPY requirements.txt requirements-*.txt ./
RUN /opt/venv/bin/python -m pip install --require-hashes --requirement requirements.txt
# EXTRAS in .env: optional parts, as in EXTRAS=s3.
ARG EXTRAS=""
RUN for extra in $EXTRAS; do /opt/venv/bin/python -m pip install --require-hashes --requirement "requirements-$extra.txt" || exit 1; done
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY migrations migrations
COPY project project
COPY services services
COPY tasks tasks
# Installed and not only copied, because Celery finds commands by their entry points. pip compiles it, because the root is read-only
# later. pip and setuptools are not needed afterwards.
RUN /opt/venv/bin/python -m pip install --no-deps --no-build-isolation ./engine . \
 && /opt/venv/bin/python -m pip uninstall --yes setuptools pip

FROM base
# A fixed number, so that it is the same in every container and on every volume; a name, because some programs ask for one.
# A named volume takes its owner from the folder that it is first mounted on: this one.
RUN groupadd --gid 10001 app \
 && useradd --uid 10001 --gid 10001 --home-dir /app --no-create-home --shell /usr/sbin/nologin app \
 && install --directory --owner=10001 --group=10001 /app/var /app/var/feeds
WORKDIR /app
COPY alembic.ini ./
COPY examples examples
COPY migrations migrations
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
CMD ["celery", "-A", "project", "worker", "-n", "worker@%h"]
