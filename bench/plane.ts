import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import { type Layout, layout, ports } from '#shared/layout'
import { freeBase } from '../device-sim/throwaway-plane.ts'
import type { BenchContext } from './harness.ts'
import type { Target } from './load.ts'
import { ready, type Server, startServer } from './processes.ts'

export const MUSTER = fileURLToPath(new URL('../bin/muster.mjs', import.meta.url))

/** An enrollment service of the bench's own, as `muster enrollment` runs it, on the server's core. */
export interface Plane {
  readonly server: Server
  readonly layout: Layout
  readonly target: Target
  readonly ports: ReturnType<typeof ports>
  readonly command: string
  readonly admin: AdminClient
  /** From the start of the process until it serves, ms. */
  readonly readyMs: number
}

/** A directory that goes when the bench ends. On the disk, never in memory: durability is part of every figure. */
export function newDirectory(context: BenchContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'muster-bench-'))
  context.ended(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** @throws MusterError unavailable when it does not start */
export async function startPlane(
  context: BenchContext,
  of: { data?: string; options?: readonly string[] } = {},
): Promise<Plane> {
  const { data = newDirectory(context), options = [] } = of
  const base = await freeBase(Math.random)
  const command = [
    process.execPath,
    ...nodeOptions(),
    ...options,
    MUSTER,
    'enrollment',
    '--data',
    data,
    '--port-base',
    String(base),
    '--log-level',
    'warn',
  ]
  const begun = performance.now()
  const server = startServer(command, { context, cwd: data, ipc: true })
  await ready(server, 'muster enrollment')
  const readyMs = performance.now() - begun
  const places = layout(data)
  const admin = openAdminClient(readOperatorProfile(places.operatorProfile))
  context.ended(() => admin.close())
  return {
    server,
    layout: places,
    ports: ports(base),
    target: { port: ports(base).enrollment, ca: readFileSync(places.rootCertificate, 'utf8') },
    command: 'muster enrollment --data DIR --log-level warn',
    admin,
    readyMs,
  }
}

/** `MUSTER_BENCH_NODE_OPTIONS=--cpu-prof` and the like, for whoever looks for what to make faster. */
function nodeOptions(): string[] {
  return (process.env.MUSTER_BENCH_NODE_OPTIONS ?? '').split(' ').filter(Boolean)
}
