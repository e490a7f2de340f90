/** What Aedes tells of its clients, and what follows from it. */
import { sqliteCode } from '#shared/sqlite'
import { holdReading } from '../door/guarded-socket.ts'
import { endedBy } from '../ending.ts'
import { stillLive } from '../judge/admission.ts'
import type { PublishRate } from '../judge/publish-rate.ts'
import type { Broker } from './aedes-broker.ts'
import { type MqttDeps, orDeny } from './aedes-callbacks.ts'
import { isGone, type Link, type MqttClient } from './mqtt-client.ts'
import type { News } from './news.ts'
import type { RepeatedFilters } from './repeated-filters.ts'

export interface RatedDeps extends MqttDeps {
  readonly rate: Pick<PublishRate, 'heldMs'>
}

/** A client that has closed, or may not be here any more, is taken out of the register in the same tick. */
export function observe(
  broker: Broker,
  of: { deps: RatedDeps; news: News; repeated: RepeatedFilters },
): void {
  const { deps, news, repeated } = of
  const check = (client: MqttClient) => {
    if (!isLive(deps, client)) {
      client.conn.destroy()
      if (client.closed) broker.unregisterClient(client)
    } else if (!client.clean) broker.delivery.start(client)
  }
  broker.on('clientReady', check)
  broker.on('connackSent', ({ returnCode }: { returnCode: number }, client: MqttClient) => {
    if (returnCode !== 0 || isGone(client)) return
    accepted(deps, client.req)
    news.tell(client.req.connection)
  })
  broker.on('keepaliveTimeout', (client: MqttClient) => {
    endedBy(client.req.connection, 'keepalive')
  })
  // Before its socket has closed; what only it has seen ended it, or nothing that is known here.
  broker.on('clientError', (client: MqttClient, error: unknown) => {
    if (sqliteCode(error) !== null) endedBy(client.req.connection, 'store')
  })
  broker.on('subscribe', (granted: { topic: string; qos: number }[], client: MqttClient) => {
    repeated.subscribed(granted, client)
    deps.store.serve(client)
  })
  broker.on('unsubscribe', (filters: readonly string[], client: MqttClient) => {
    for (const filter of filters) client.req.filters.delete(filter)
  })
  broker.on('error', (error: Error) => deps.log.error({ err: error }, 'broker error'))
}

/** Looks once more at a client; one that may not be here any more is marked and its socket destroyed. */
export function isLive(deps: MqttDeps, client: MqttClient): boolean {
  if (isGone(client)) return false
  const { connection } = client.req
  const code = orDeny(
    deps,
    'register',
    () => stillLive(deps.replica.record(connection.fingerprint), deps.now()),
    'unrecorded',
  )
  if (code === null) return true
  connection.refused ??= code
  client.conn.destroy()
  return false
}

function accepted(deps: RatedDeps, link: Link): void {
  const { fingerprint, device, address, id, isResumed: resumed = false, socket } = link.connection
  link.isAccepted = true
  const heldMs = deps.rate.heldMs(device, deps.now())
  if (heldMs > 0) holdReading(socket, heldMs) // connecting again is no way around its rate
  deps.report({ type: 'connected', at: deps.now(), fingerprint, device, address, connection: id, resumed })
}
