output "store" {
  description = "For --store, and TOKENLOOM_STORE."
  value       = "s3://${aws_s3_bucket.store.id}/store"
}

output "image" {
  description = "Where to push the image of infra/Dockerfile."
  value       = local.image
}

output "submit" {
  description = "Commands that submit a run, to machines with one GPU each (var.node.gpus)."
  value = {
    one   = "tokenloom submit RUN --queue ${aws_batch_job_queue.queue["one"].name} --job-definition ${aws_batch_job_definition.one.name} --store s3://${aws_s3_bucket.store.id}/store --cluster gpu"
    nodes = "tokenloom submit RUN --queue ${aws_batch_job_queue.queue["nodes"].name} --job-definition ${aws_batch_job_definition.nodes.name} --store s3://${aws_s3_bucket.store.id}/store --nodes ${var.nodes} --cluster ray_cluster --set cluster.execution.workers=${var.nodes} --set cluster.extract_actors=${var.nodes}"
  }
}

output "submit_policy" {
  description = "Policy for people who submit."
  value       = aws_iam_policy.submit.arn
}
