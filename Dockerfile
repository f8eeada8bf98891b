FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 farpool
COPY . /tmp/source
RUN pip install --no-cache-dir "/tmp/source[embedded]" && rm -r /tmp/source

USER farpool
WORKDIR /home/farpool
ENTRYPOINT ["farpool"]
