import { join, resolve } from 'node:path'

/** Where everything lies in a data directory. Enrollment writes ca/, enrollment/ and operator/; the broker only broker/. */
export function layout(dataDirectory: string) {
  const root = resolve(dataDirectory)
  return {
    root,
    /** Held by `muster up`; the services hold a lock of their own in their directory. */
    lock: join(root, 'lock.db'),
    ready: join(root, 'ready.json'),
    ca: join(root, 'ca'),
    rootCertificate: join(root, 'ca', 'root.crt'),
    enrollment: join(root, 'enrollment'),
    registry: join(root, 'enrollment', 'registry.db'),
    /** The newest audit entry, signed: outside the database, so that entries cannot be cut off its end. */
    auditHead: join(root, 'enrollment', 'audit-head.json'),
    /** What every commit of the registry wrote; may lie on another disk. */
    journal: join(root, 'journal'),
    operator: join(root, 'operator'),
    operatorProfile: join(root, 'operator', 'profile.json'),
    broker: join(root, 'broker'),
    demo: join(root, 'demo'),
  } as const
}
export type Layout = ReturnType<typeof layout>

/** Ports by their distance from the base (default 8000): 8883, 8443, 8444, 8080. */
export function ports(base: number) {
  return { broker: base + 883, enrollment: base + 443, admin: base + 444, http: base + 80 } as const
}

/** Where `muster up --metrics` serves them: 8090 and 8091. */
export function metricsPorts(base: number) {
  return { enrollment: base + 90, broker: base + 91 } as const
}

export const DEFAULT_PORT_BASE = 8000

/** `ready.json`: what a running plane offers, URLs and paths, never secrets. */
export interface Ready {
  readonly schemaVersion: 1
  readonly pid: number
  readonly broker: string
  readonly enrollment: string
  readonly admin: string
  readonly http: string
  /** Root certificate, PEM. */
  readonly caFile: string
  readonly operatorProfile: string
}

/** `operator/profile.json`: how an operator's tool reaches the admin API. Paths are absolute. */
export interface OperatorProfile {
  readonly schemaVersion: 1
  readonly admin: string
  readonly caFile: string
  readonly certificateFile: string
  readonly keyFile: string
}
