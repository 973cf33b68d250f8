variable "region" {
  type        = string
  description = "AWS region."
  default     = "us-east-1"
}

variable "name" {
  type        = string
  description = "Prefix of everything that is made."
  default     = "tokenloom"
}

variable "bucket" {
  type        = string
  description = "Name of the bucket of artifacts; bucket names are global, so there is no default."
}

variable "vpc_id" {
  type        = string
  description = "Network of the machines."
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets from which S3, ECR and CloudWatch can be reached (NAT or VPC endpoints)."
}

variable "instance_types" {
  type        = list(string)
  description = "Machines; those of a multi-node job should be alike."
  default     = ["g6.2xlarge"]
}

variable "capacity" {
  type        = string
  description = "Machines of the one-node queue: SPOT or EC2. Multi-node jobs always run on EC2: AWS offers them no spot machines."
  default     = "SPOT"
  validation {
    condition     = contains(["SPOT", "EC2"], var.capacity)
    error_message = "capacity is SPOT or EC2."
  }
}

variable "max_vcpus" {
  type        = number
  description = "Most vCPUs of each queue at a time: the limit of what a mistake can cost."
  default     = 64
}

variable "nodes" {
  type        = number
  description = "Machines of a multi-node job, unless `tokenloom submit --nodes` says otherwise."
  default     = 2
}

variable "node" {
  type        = object({ vcpus = number, memory = number, gpus = number, shared_memory = number })
  description = "What the container of one machine asks for; memory in MiB, a little less than the machine has."
  default     = { vcpus = 8, memory = 28000, gpus = 1, shared_memory = 8192 }
}

variable "image_tag" {
  type        = string
  description = "Tag of the image in the registry that is made here."
  default     = "0.1.0"
}

variable "mlflow_uri" {
  type        = string
  description = "Address of the MLflow server, without a password; empty if the cluster file names it."
  default     = ""
}

variable "secrets" {
  type        = map(string)
  description = "Environment variable to ARN in Secrets Manager, e.g. MLFLOW_TRACKING_PASSWORD."
  default     = {}
}

variable "timeout_hours" {
  type        = number
  description = "An attempt of a job that takes longer is ended; it goes on from its last checkpoint when it is submitted again."
  default     = 48
}

variable "log_days" {
  type        = number
  description = "Days for which logs are kept."
  default     = 30
}
