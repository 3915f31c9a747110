{{/* What everything of a release is named after: the release itself, unless fullnameOverride says otherwise. */}}
{{- define "triton-controlplane.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride -}}
{{- end -}}

{{- define "triton-controlplane.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that find pods. Takes (dict "root" $ "component" NAME). They never change between upgrades. */}}
{{- define "triton-controlplane.selector" -}}
app.kubernetes.io/name: triton-controlplane
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of pods: a new version of the chart alone restarts none. Takes (dict "root" $ "component" NAME). */}}
{{- define "triton-controlplane.podLabels" -}}
{{ include "triton-controlplane.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: triton-controlplane
{{- end -}}

{{/* Labels of every object. Takes (dict "root" $ "component" NAME). */}}
{{- define "triton-controlplane.labels" -}}
{{ include "triton-controlplane.podLabels" . }}
helm.sh/chart: {{ include "triton-controlplane.chart" .root }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Name, namespace, labels and annotations. Takes root, component, name and, if there are any, labels and annotations. */}}
{{- define "triton-controlplane.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "triton-controlplane.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where agents and gateways find the controller. */}}
{{- define "triton-controlplane.controllerUrl" -}}
http://{{ include "triton-controlplane.fullname" . }}-controller:8080
{{- end -}}
