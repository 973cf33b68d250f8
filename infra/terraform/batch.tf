# Machines speak with each other (Ray, NCCL) and out over TLS; nobody speaks to them from outside.
resource "aws_security_group" "nodes" {
  name        = "${var.name}-nodes"
  description = "Nodes of a job"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "each_other" {
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "each_other" {
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "tls" {
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = "0.0.0.0/0"
  from_port         = 443
  to_port           = 443
  ip_protocol       = "tcp"
}

resource "aws_launch_template" "machine" {
  name = "${var.name}-machine"
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # containers cannot take the machine's role
  }
  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = 200
      volume_type = "gp3"
      encrypted   = true
    }
  }
}

locals {
  image = "${aws_ecr_repository.image.repository_url}:${var.image_tag}"
  # One node each, cheaply and preemptible; several nodes, on machines that stay.
  queues = { one = var.capacity, nodes = "EC2" }
  environment = concat(
    [{ name = "TOKENLOOM_ROOT", value = "/home/loom/.tokenloom" }, { name = "AWS_REGION", value = var.region }],
    var.mlflow_uri == "" ? [] : [{ name = "MLFLOW_TRACKING_URI", value = var.mlflow_uri }],
  )
  requirements = concat(
    [{ type = "VCPU", value = tostring(var.node.vcpus) }, { type = "MEMORY", value = tostring(var.node.memory) }],
    var.node.gpus == 0 ? [] : [{ type = "GPU", value = tostring(var.node.gpus) }],
  )
  container = {
    image                = local.image
    command              = ["tokenloom", "--help"] # `tokenloom submit` puts `tokenloom node s3://…` here
    jobRoleArn           = aws_iam_role.job.arn
    executionRoleArn     = aws_iam_role.start.arn
    environment          = local.environment
    secrets              = [for name, arn in var.secrets : { name = name, valueFrom = arn }]
    resourceRequirements = local.requirements
    linuxParameters      = { sharedMemorySize = var.node.shared_memory, initProcessEnabled = true }
    ulimits              = [{ name = "nofile", softLimit = 65536, hardLimit = 65536 }]
    logConfiguration     = { logDriver = "awslogs", options = { "awslogs-group" = aws_cloudwatch_log_group.jobs.name } }
  }
}

resource "aws_batch_compute_environment" "place" {
  for_each = local.queues
  name     = "${var.name}-${each.key}"
  type     = "MANAGED"
  compute_resources {
    type                = each.value
    allocation_strategy = each.value == "SPOT" ? "SPOT_PRICE_CAPACITY_OPTIMIZED" : "BEST_FIT_PROGRESSIVE"
    min_vcpus           = 0
    max_vcpus           = var.max_vcpus
    instance_type       = var.instance_types
    instance_role       = aws_iam_instance_profile.machine.arn
    subnets             = var.subnet_ids
    security_group_ids  = [aws_security_group.nodes.id]
    launch_template {
      launch_template_id = aws_launch_template.machine.id
      version            = "$Latest"
    }
  }
  depends_on = [aws_iam_role_policy_attachment.machine]
}

resource "aws_batch_job_queue" "queue" {
  for_each = local.queues
  name     = "${var.name}-${each.key}"
  state    = "ENABLED"
  priority = 1
  compute_environment_order {
    order               = 1
    compute_environment = aws_batch_compute_environment.place[each.key].arn
  }
}

resource "aws_batch_job_definition" "one" {
  name                  = "${var.name}-one"
  type                  = "container"
  platform_capabilities = ["EC2"]
  container_properties  = jsonencode(local.container)
  timeout {
    attempt_duration_seconds = var.timeout_hours * 3600
  }
}

# The retry strategy comes with each job (tasks/runtime/batch.py): exit code 75 and a lost machine come back.
resource "aws_batch_job_definition" "nodes" {
  name                  = "${var.name}-nodes"
  type                  = "multinode"
  platform_capabilities = ["EC2"]
  node_properties = jsonencode({
    numNodes            = var.nodes
    mainNode            = 0
    nodeRangeProperties = [{ targetNodes = "0:", container = local.container }]
  })
  timeout {
    attempt_duration_seconds = var.timeout_hours * 3600
  }
}
