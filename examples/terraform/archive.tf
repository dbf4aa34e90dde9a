# The same messages into another Kafka cluster as well, once its brokers are named: at least once, over TLS.

variable "archive_brokers" {
  type        = list(string)
  default     = []
  description = "host:port each; none: no such rule."
}

variable "archive_username" {
  type    = string
  default = "tidegate"
}

# TF_VAR_archive_password, so that it is in no file.
variable "archive_password" {
  type      = string
  default   = ""
  sensitive = true
}

resource "ably_rule_kafka" "archive" {
  count        = length(var.archive_brokers) > 0 ? 1 : 0
  app_id       = ably_app.shop.id
  status       = "enabled"
  request_mode = "single"
  source = {
    channel_filter = "^chat:"
    type           = "channel.message"
  }
  target = {
    routing_key = "chat-archive:#{channelName}"
    brokers     = var.archive_brokers
    enveloped   = false
    format      = "json"
    auth = {
      sasl = {
        mechanism = "scram-sha-512"
        username  = var.archive_username
        password  = var.archive_password
      }
    }
  }
}

output "archive_rule_id" {
  value = one(ably_rule_kafka.archive[*].id)
}
