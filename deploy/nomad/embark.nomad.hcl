# EmbArk: answers look-ups. Envoy (envoy.nomad.hcl) finds each of them by Nomad's own service discovery.
#
#     nomad job run -var count=3 embark.nomad.hcl
#     nomad job scale embark embark 5
#     nomad job run -preserve-counts -var release=2 embark.nomad.hcl    # one after the other, no call fails

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
  default = 2
}

variable "plaintext" {
  type        = bool
  default     = false
  description = "Whether it may listen without TLS where other hosts can reach it: on a private network alone."
}

variable "lookup_budget_ms" {
  type    = number
  default = 2000
}

job "embark" {
  datacenters = ["*"]

  meta {
    release = var.release
  }

  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "2s" # Envoy asks each second whether it serves
    healthy_deadline = "5m" # importing and connecting take seconds, on a busy host more
    auto_revert      = true
  }

  group "embark" {
    count = var.count

    scaling {
      enabled = true
      min     = 1
      max     = 32

      # For the Nomad Autoscaler; Nomad itself does not read it.
      policy {
        cooldown = "1m"
        check "latency" {
          source = "prometheus"
          query  = "histogram_quantile(0.99, sum by (le) (rate(embark_call_seconds_bucket[1m])))"
          strategy "target-value" {
            target = 0.05
          }
        }
      }
    }

    # It leaves discovery first and is told to end then: by that time Envoy sends it nothing new.
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
      name     = "embark"
      provider = "nomad"
      port     = "grpc"
    }

    service {
      name     = "embark-metrics"
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

    task "embark" {
      driver = "raw_exec"

      config {
        command = var.embark
        args    = ["serve"]
      }

      env {
        EMBARK_REPO             = var.repo
        EMBARK_STATE            = "${NOMAD_ALLOC_DIR}/data"
        EMBARK_EMBARK_ADDRESS   = "${NOMAD_ADDR_grpc}"
        EMBARK_EMBARK_METRICS   = "${NOMAD_ADDR_metrics}"
        EMBARK_PLAINTEXT        = var.plaintext
        EMBARK_LOOKUP_BUDGET_MS = var.lookup_budget_ms
        EMBARK_DRAIN_SECONDS    = "2" # > Envoy's health check
        EMBARK_LOG_FORMAT       = "json"
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "20s" # > EMBARK_DRAIN_SECONDS and the 10 s that calls under way are given

      resources {
        cpu    = 1000
        memory = 1024 # hot cache: 256 MB a view
      }
    }
  }
}
