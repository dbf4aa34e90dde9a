# An app of Tidegate with a key, two namespaces and a Kafka rule, by the public Terraform provider for Ably.
# README.md beside this file says how to run it.

terraform {
  required_providers {
    ably = { source = "ably/ably" }
  }
}

# The core's admin listener, with /v1. The token comes from ABLY_ACCOUNT_TOKEN, so that it is in no file.
provider "ably" {
  url = var.control_url
}

variable "control_url" {
  type        = string
  default     = "http://127.0.0.1:9444/v1"
  description = "As in https://10.0.0.10:9444/v1; any core will do."
}

variable "app_name" {
  type    = string
  default = "shop"
}

variable "web_may" {
  type        = set(string)
  default     = ["subscribe", "history"]
  description = "What the key for browsers may do on chat channels."
}

variable "rule_status" {
  type    = string
  default = "enabled"
}

resource "ably_app" "shop" {
  name     = var.app_name
  tls_only = true
}

resource "ably_api_key" "web" {
  app_id           = ably_app.shop.id
  name             = "web"
  revocable_tokens = true
  capabilities = {
    "chat:*" = var.web_may
    "news"   = ["subscribe"]
  }
}

# Nobody without a clientId on `account` and `account:…`.
resource "ably_namespace" "account" {
  app_id     = ably_app.shop.id
  id         = "account"
  identified = true
}

resource "ably_namespace" "chat" {
  app_id = ably_app.shop.id
  id     = "chat"
}

# Every message on a chat channel becomes a record of the topic `chat-messages`, keyed by its channel, in the core's own cluster:
# no brokers. The provider wants `auth` all the same; without brokers nothing of it is used.
resource "ably_rule_kafka" "chat" {
  app_id       = ably_app.shop.id
  status       = var.rule_status
  request_mode = "single"
  source = {
    channel_filter = "^chat:"
    type           = "channel.message"
  }
  target = {
    routing_key = "chat-messages:#{channelName}"
    brokers     = []
    enveloped   = false
    format      = "json"
    auth = {
      sasl = {
        mechanism = "plain"
        username  = ""
        password  = ""
      }
    }
  }
}

output "app_id" {
  value = ably_app.shop.id
}

output "rule_id" {
  value = ably_rule_kafka.chat.id
}

output "web_key" {
  value     = ably_api_key.web.key
  sensitive = true
}
