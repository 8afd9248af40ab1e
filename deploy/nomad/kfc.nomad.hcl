# KFC: takes requests from Kafka, has Retina embed them, and writes history and the online store.
#
#     nomad job run kfc.nomad.hcl
#     nomad job scale kfc kfc 4

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

variable "retina_port" {
  type        = number
  default     = 50060
  description = "Of the Envoy on each host, which spreads calls over the Retinas: `retina_port` of envoy.nomad.hcl."
}

job "kfc" {
  datacenters = ["*"]

  meta {
    release = var.release
  }

  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "2s"
    healthy_deadline = "5m"
    auto_revert      = true
  }

  group "kfc" {
    count = var.count

    scaling {
      enabled = true
      min     = 1
      max     = 6 # partitions of the request topic: one more would have nothing to do

      # For the Nomad Autoscaler; Nomad itself does not read it.
      policy {
        cooldown = "2m" # each change of the group stops its work for a moment
        check "lag" {
          source = "prometheus"
          query  = "max(kfc_lag_requests{topic=\"live\"})"
          strategy "target-value" {
            target = 1000
          }
        }
      }
    }

    restart {
      attempts = 20
      interval = "10m"
      delay    = "1s"
      mode     = "delay"
    }

    network {
      port "metrics" {}
    }

    service {
      name     = "kfc-metrics"
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

    task "kfc" {
      driver = "raw_exec"

      config {
        command = var.embark
        args    = ["materialize"]
      }

      env {
        EMBARK_REPO           = var.repo
        EMBARK_STATE          = "${NOMAD_ALLOC_DIR}/data"
        EMBARK_KFC_METRICS    = "${NOMAD_ADDR_metrics}"
        EMBARK_RETINA_ADDRESS = "${attr.unique.network.ip-address}:${var.retina_port}"
        EMBARK_LOG_FORMAT     = "json"
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "60s" # the batch at hand is finished; one that is not is read again by another

      resources {
        cpu    = 1000
        memory = 768
      }
    }
  }
}
