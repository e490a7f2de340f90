import { X509Certificate } from 'node:crypto'
import t from 'tap'
import type { CertificateReply } from '#shared/api'
import { enrollDevice, newRequest, startEnrollment } from '../support/enrollment.ts'

t.test('a device enrolls with a token, and the operator sees it', async (t) => {
  const service = await startEnrollment(t)
  const device = await enrollDevice(service, { id: 'press-1' })
  const leaf = new X509Certificate(device.certificate)
  t.equal(leaf.subject, 'CN=press-1')
  t.match(leaf.subjectAltName, 'spiffe://muster.local/device/press-1')
  t.match(await service.admin.showDevice('press-1'), { id: 'press-1', state: 'active', batch: 'lab' })
  t.match(await service.admin.status(), { devices: { active: 1 } })
})
