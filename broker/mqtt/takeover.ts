import { farewell } from '../door/guarded-socket.ts'
import { endedBy } from '../ending.ts'
import { CloneWatch, WITHIN_MS } from '../judge/clone-watch.ts'
import { refusedReport } from '../refusals.ts'
import type { AdmissionRecord } from '../replica/replica.ts'
import type { Connection } from '../sessions.ts'
import { type MqttDeps, orDeny, refuse } from './aedes-callbacks.ts'
import type { MqttClient } from './mqtt-client.ts'

/** How long a client that was replaced has to show that it is still there, ms. */
const ANSWER_MS = 2_000

/**
 * What is reported when one client takes over from another. Two with one identity may be a clone; a device that comes
 * with its newer certificate is rotating. A client at another address is let go in peace, because its answer tells
 * whether it was still there.
 */
export function openTakeovers(deps: MqttDeps): (previous: MqttClient, newcomer: MqttClient) => void {
  const watch = new CloneWatch()
  return (previous, newcomer) => {
    const [old, { connection }] = [previous.req, newcomer.req]
    const { address, fingerprint } = old.connection
    const isRotation =
      fingerprint !== connection.fingerprint &&
      orDeny(deps, 'takeover', () => isNewest(deps.replica.record(connection.fingerprint)), false)
    endedBy(old.connection, isRotation ? 'rotated' : 'duplicate')
    if (isRotation) return
    const otherAddress = connection.address
    refuse(deps, old, { code: 'duplicate', evidence: { address, otherAddress } })
    if (address === otherAddress) return
    farewell(previous.conn, {
      ms: ANSWER_MS,
      done(wasAlive) {
        const { clientId } = old
        const takeovers = watch.saw({ clientId, from: address, to: otherAddress, wasAlive, now: deps.now() })
        if (takeovers !== null) alarm(deps, connection, { address, otherAddress, takeovers })
      },
    })
  }
}

function alarm(
  deps: MqttDeps,
  connection: Connection,
  seen: { readonly address: string; readonly otherAddress: string; readonly takeovers: number },
): void {
  const evidence = { ...seen, withinS: WITHIN_MS / 1_000 }
  deps.log.warn({ device: connection.device, ...evidence }, 'clone alarm: one identity at two addresses')
  deps.report(refusedReport({ code: 'clone', evidence }, connection, deps.now()))
}

/** The overlap of a certificate begins when its successor is seen. */
function isNewest(record: AdmissionRecord | null): boolean {
  return record?.certificate.supersededFrom === null
}
