output "store" {
  description = "For --store, and TOKENLOOM_STORE."
  value       = "s3://${aws_s3_bucket.store.id}/store"
}

output "image" {
  description = "Where to push the image of infra/Dockerfile."
  value       = local.image
}

output "submit" {
  description = "Commands that submit a run."
  value = {
    one   = "tokenloom submit RUN --queue ${aws_batch_job_queue.queue["one"].name} --job-definition ${aws_batch_job_definition.one.name}"
    nodes = "tokenloom submit RUN --queue ${aws_batch_job_queue.queue["nodes"].name} --job-definition ${aws_batch_job_definition.nodes.name} --nodes ${var.nodes}"
  }
}

output "submit_policy" {
  description = "Policy for people who submit."
  value       = aws_iam_policy.submit.arn
}
