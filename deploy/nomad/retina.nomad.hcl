# Retina: downloads, decodes and embeds. Envoy (envoy.nomad.hcl) spreads the calls of KFC over them.
#
#     nomad job run -var 'warm=["inception_v3__v1"]' retina.nomad.hcl
#     nomad job scale retina retina 4

variable "embark" {
  type        = string
  default     = "/opt/embark/bin/embark"
  description = "The command `embark`, at the same place on each host."
}

variable "repo" {
  type        = string
  default     = "/opt/embark/feature_repo"
  description = "The applied feature repo on each host: `embark init`; docs/deploy.md."
}

variable "release" {
  type        = string
  default     = "1"
  description = "Another value starts each process anew: after an upgrade of what lies at `embark`."
}

variable "count" {
  type    = number
  default = 1
}

variable "warm" {
  type        = list(string)
  default     = []
  description = "Views that are loaded before it is sent anything."
}

variable "fetch_networks" {
  type        = list(string)
  default     = []
  description = "Private networks to download from, as 10.1.0.0/16; public addresses only otherwise."
}

variable "device" {
  type    = string
  default = "auto"
}

variable "memory" {
  type        = number
  default     = 4096
  description = "MB that Nomad reserves for each."
}

job "retina" {
  datacenters = ["*"]

  meta {
    release = var.release
  }

  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "10m" # weights are downloaded, networks loaded
    progress_deadline = "15m"
    auto_revert       = true
  }

  group "retina" {
    count = var.count

    scaling {
      enabled = true
      min     = 1
      max     = 32

      # For the Nomad Autoscaler; Nomad itself does not read it.
      policy {
        cooldown = "5m"
        check "keys_at_hand" {
          source = "prometheus"
          query  = "avg(embark_retina_keys_at_hand)"
          strategy "target-value" {
            target = 512
          }
        }
      }
    }

    shutdown_delay = "4s"

    restart {
      attempts = 20
      interval = "10m"
      delay    = "1s"
      mode     = "delay"
    }

    network {
      port "grpc" {}
      port "metrics" {}
    }

    service {
      name     = "retina"
      provider = "nomad"
      port     = "grpc"
    }

    service {
      name     = "retina-metrics"
      provider = "nomad"
      port     = "metrics"
      tags     = ["prometheus"]

      check {
        type     = "http"
        path     = "/health"
        interval = "2s"
        timeout  = "5s"
      }
    }

    task "retina" {
      driver = "raw_exec"

      config {
        command = var.embark
        args    = ["retina"]
      }

      env {
        EMBARK_REPO           = var.repo
        EMBARK_STATE          = "${NOMAD_ALLOC_DIR}/data"
        EMBARK_RETINA_ADDRESS = "${NOMAD_ADDR_grpc}"
        EMBARK_RETINA_METRICS = "${NOMAD_ADDR_metrics}"
        EMBARK_RETINA_WARM    = jsonencode(var.warm)
        EMBARK_FETCH_NETWORKS = jsonencode(var.fetch_networks)
        EMBARK_DEVICE         = var.device
        EMBARK_LOG_FORMAT     = "json"
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "30s" # > retina_grace_seconds

      resources {
        cpu    = 1000
        memory = var.memory
      }
    }
  }
}
