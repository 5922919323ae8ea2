"""The bucket of the stack: `python -m infra.bucket NAME`, with the stack's environment, creates it when missing."""

from __future__ import annotations

import os
import sys

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def create_bucket(bucket: str) -> None:
    """Create a bucket at the endpoint of `MZSANE_S3_ENDPOINT` unless it is there."""
    client = boto3.client("s3", endpoint_url=os.environ["MZSANE_S3_ENDPOINT"])
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        region = client.meta.region_name
        # The default region must not be named (CreateBucket, Amazon S3 API reference).
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        client.create_bucket(Bucket=bucket, **place)


if __name__ == "__main__":
    try:
        create_bucket(sys.argv[1])
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"error: no bucket {sys.argv[1]}: {error}")
