# Four roles, each with what it needs and no more: the job (our code), its start (image, logs, secrets), the machine, the person.
data "aws_iam_policy_document" "assume" {
  for_each = { tasks = "ecs-tasks.amazonaws.com", machines = "ec2.amazonaws.com" }
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = [each.value]
    }
  }
}

# What our code may do: read and write the store. No list of buckets, no other bucket, nothing else of AWS.
data "aws_iam_policy_document" "job" {
  statement {
    actions   = ["s3:ListBucket", "s3:GetBucketLocation"]
    resources = [aws_s3_bucket.store.arn]
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.store.arn}/*"]
  }
}

resource "aws_iam_role" "job" {
  name               = "${var.name}-job"
  assume_role_policy = data.aws_iam_policy_document.assume["tasks"].json
}

resource "aws_iam_role_policy" "job" {
  name   = "store"
  role   = aws_iam_role.job.id
  policy = data.aws_iam_policy_document.job.json
}

data "aws_iam_policy_document" "start" {
  statement {
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"] # AWS knows no narrower one
  }
  statement {
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"]
    resources = [aws_ecr_repository.image.arn]
  }
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.jobs.arn}:*"]
  }
  dynamic "statement" {
    for_each = length(var.secrets) > 0 ? [1] : []
    content {
      actions   = ["secretsmanager:GetSecretValue"]
      resources = values(var.secrets)
    }
  }
}

resource "aws_iam_role" "start" {
  name               = "${var.name}-start"
  assume_role_policy = data.aws_iam_policy_document.assume["tasks"].json
}

resource "aws_iam_role_policy" "start" {
  name   = "start"
  role   = aws_iam_role.start.id
  policy = data.aws_iam_policy_document.start.json
}

resource "aws_iam_role" "machine" {
  name               = "${var.name}-machine"
  assume_role_policy = data.aws_iam_policy_document.assume["machines"].json
}

resource "aws_iam_role_policy_attachment" "machine" {
  role       = aws_iam_role.machine.name
  policy_arn = "arn:aws:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
}

resource "aws_iam_instance_profile" "machine" {
  name = "${var.name}-machine"
  role = aws_iam_role.machine.name
}

# For people (attach it to their group or role): submit and look, and write submissions; not the artifacts.
data "aws_iam_policy_document" "submit" {
  statement {
    actions = ["batch:SubmitJob", "batch:TagResource"]
    resources = concat(
      [for queue in aws_batch_job_queue.queue : queue.arn],
      [for definition in [aws_batch_job_definition.one, aws_batch_job_definition.nodes] : "${definition.arn_prefix}:*"],
    )
  }
  statement {
    actions   = ["batch:ListJobs", "batch:DescribeJobs"]
    resources = ["*"] # AWS knows no narrower one
  }
  statement {
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.store.arn}/*/submissions/*"]
  }
}

resource "aws_iam_policy" "submit" {
  name   = "${var.name}-submit"
  policy = data.aws_iam_policy_document.submit.json
}
