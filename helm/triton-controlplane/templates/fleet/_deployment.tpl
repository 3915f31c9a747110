{{/* A fleet's Deployment. Takes root and fleet (with its defaults). */}}
{{- define "triton-controlplane.fleetDeployment" -}}
{{- $root := .root }}
{{- $fleet := .fleet }}
{{- $full := include "triton-controlplane.fullname" $root }}
{{- $name := printf "%s-%s" $full $fleet.name }}
{{- $mine := dict "triton-controlplane.io/fleet" $fleet.name }}
{{- $self := dict "root" $root "component" "fleet" "name" $name "labels" $mine }}
{{- $disk := include "triton-controlplane.bytes" $fleet.disk_bytes | int64 }}
{{- $memory := include "triton-controlplane.bytes" $fleet.memory_bytes | int64 }}
{{- $shm := include "triton-controlplane.bytes" $fleet.shmBytes | int64 }}
{{- $overhead := include "triton-controlplane.bytes" $fleet.overheadBytes | int64 }}
{{- $selector := merge (include "triton-controlplane.selector" $self | fromYaml) $mine }}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "triton-controlplane.metadata" $self | nindent 2 }}
spec:
  # No number of replicas: the controller sets it, and an upgrade leaves it as it is.
  selector:
    matchLabels:
      {{- toYaml $selector | nindent 6 }}
  strategy:
    rollingUpdate:
      {{- toYaml $fleet.rollingUpdate | nindent 6 }}
  progressDeadlineSeconds: {{ add (int64 $fleet.startTimeoutSeconds) 1200 }}
  template:
    metadata:
      labels:
        {{- include "triton-controlplane.podLabels" $self | nindent 8 }}
        {{- toYaml $mine | nindent 8 }}
        {{- with $fleet.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: triton
        {{- with $fleet.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ $full }}-fleet
      automountServiceAccountToken: false
      enableServiceLinks: false
      # The agent watches and ends the server's process.
      shareProcessNamespace: true
      # It is led away from, then Triton ends, then the agent.
      terminationGracePeriodSeconds: {{ add (include "triton-controlplane.drain" . | int64) (int64 $fleet.exitTimeoutSeconds) 15 }}
      {{- with include "triton-controlplane.pullSecrets" (dict "root" $root "settings" $fleet) | trim }}{{ . | nindent 6 }}{{ end }}
      {{- with include "triton-controlplane.hostAliases" $root | trim }}{{ . | nindent 6 }}{{ end }}
      {{- with $fleet.podSecurityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      initContainers:
        - name: agent
          # A sidecar: it starts before the server and ends after it.
          restartPolicy: Always
          image: {{ include "triton-controlplane.image" (dict "root" $root "image" $fleet.agentImage) }}
          imagePullPolicy: {{ include "triton-controlplane.pullPolicy" (dict "root" $root "image" $fleet.agentImage) }}
          terminationMessagePolicy: FallbackToLogsOnError
          command: [python3, -m, controlplane.agent]
          args:
            - --home=/data
            - --replica=$(POD_NAME)
            - --fleet={{ $fleet.name }}
            - --controller-url={{ include "triton-controlplane.controllerUrl" $root }}
            - --token-file=/var/run/secrets/triton-controlplane/token
            - --pod-ip=$(POD_IP)
            - --port=8090
            - --disk-bytes={{ $disk }}
            - --gpus={{ int64 $fleet.gpus }}
            - --load-timeout-s={{ $fleet.load_timeout_s }}
            - --exit-timeout-s={{ int64 $fleet.exitTimeoutSeconds }}
            - --drain-s={{ include "triton-controlplane.drain" . }}
            - --response-cache-bytes={{ include "triton-controlplane.bytes" $fleet.responseCacheBytes }}
          env:
            {{- include "triton-controlplane.podEnv" $root | nindent 12 }}
            {{- with $fleet.agentExtraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: agent, containerPort: 8090}
          # The server's container starts when the agent has made its folders.
          startupProbe:
            httpGet: {path: /livez, port: agent}
            periodSeconds: 1
            failureThreshold: 120
          livenessProbe:
            httpGet: {path: /livez, port: agent}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          {{- with $fleet.agentResources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with $fleet.agentSecurityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          volumeMounts:
            - {name: data, mountPath: /data}
            - {name: shm, mountPath: /dev/shm}
            - {name: tmp, mountPath: /tmp}
            {{- include "triton-controlplane.tokenMount" $root | nindent 12 }}
      containers:
        - name: triton
          image: {{ include "triton-controlplane.image" (dict "root" $root "image" $fleet.image) }}
          imagePullPolicy: {{ include "triton-controlplane.pullPolicy" (dict "root" $root "image" $fleet.image) }}
          terminationMessagePolicy: FallbackToLogsOnError
          command: [tritonserver]
          args:
            {{- include "triton-controlplane.tritonArguments" . | nindent 12 }}
            {{- with $fleet.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env:
            {{- include "triton-controlplane.podEnv" $root | nindent 12 }}
            {{- if eq (int64 $fleet.gpus) 0 }}
            # The image asks for all GPUs; where NVIDIA's runtime is the default, it would get them.
            - name: NVIDIA_VISIBLE_DEVICES
              value: void
            {{- end }}
            {{- with $fleet.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: grpc, containerPort: 8001}
            - {name: http, containerPort: 8000}
            - {name: metrics, containerPort: 8002}
          # Through the agent: the server's own readiness turns false with one model that fails to load.
          startupProbe:
            httpGet: {path: /startupz, port: 8090}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: {{ div (add (int64 $fleet.startTimeoutSeconds) 1) 2 }}
          readinessProbe:
            httpGet: {path: /readyz, port: 8090}
            periodSeconds: 2
            timeoutSeconds: 2
          lifecycle:
            # Answers when nothing leads here any more.
            preStop:
              httpGet: {path: /drain, port: 8090}
          resources:
            {{- include "triton-controlplane.tritonResources" (dict "fleet" $fleet "bytes" (add $memory $shm $overhead)) | nindent 12 }}
          {{- with $fleet.securityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          volumeMounts:
            - {name: data, mountPath: /data}
            - {name: shm, mountPath: /dev/shm}
            - {name: tmp, mountPath: /tmp}
            {{- with $fleet.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: data
          # Downloads, and as much again as the models in memory for what is unpacked and logged.
          emptyDir: {sizeLimit: {{ add $disk $memory | quote }}}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ $shm | quote }}}
        - name: tmp
          emptyDir: {sizeLimit: 1Gi}
        {{- include "triton-controlplane.tokenVolume" $root | nindent 8 }}
        {{- with $fleet.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with include "triton-controlplane.scheduling" (dict "root" $root "settings" $fleet "labels" (toYaml $selector)) | trim }}{{ . | nindent 6 }}{{ end }}
{{- end -}}

{{/* What tritonserver is told: the same as controlplane/agent/triton/pod.py says. Takes fleet. */}}
{{- define "triton-controlplane.tritonArguments" -}}
- --id=$(POD_NAME)
- --model-repository=/data/replicas/$(POD_NAME)/models
- --model-control-mode=explicit
- --strict-readiness=false
- --disable-auto-complete-config
- --rate-limit=execution_count
- --http-port=8000
- --grpc-port=8001
- --metrics-port=8002
- --backend-config=python,shm-region-prefix-name=ctl_pod_$(POD_NAME)_
- --exit-timeout-secs={{ int64 .fleet.exitTimeoutSeconds }}
- --log-file=/data/replicas/$(POD_NAME)/triton.log
{{- if gt (int64 .fleet.gpus) 0 }}
- --metrics-interval-ms=250
{{- end }}
{{- $cache := include "triton-controlplane.bytes" .fleet.responseCacheBytes }}
{{- if ne $cache "0" }}
- --cache-config=local,size={{ $cache }}
{{- end }}
{{- end -}}

{{/* Requests and limits of Triton's container, with its GPUs. Takes fleet and bytes. */}}
{{- define "triton-controlplane.tritonResources" -}}
{{- $memory := toString (int64 .bytes) -}}
{{- $default := dict "requests" (dict "cpu" "1" "memory" $memory) "limits" (dict "memory" $memory) -}}
{{- $resources := empty .fleet.resources | ternary $default (deepCopy .fleet.resources) -}}
{{- if gt (int64 .fleet.gpus) 0 -}}
{{- $limits := default (dict) $resources.limits -}}
{{- $_ := set $limits .fleet.gpuResource (int64 .fleet.gpus) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
